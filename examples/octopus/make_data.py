"""Write what the toy Octopus learns from and is judged by: functions.json, train.jsonl and test.jsonl.

    python examples/octopus/make_data.py FOLDER

Twenty functions of a phone, each with some sentences that request it. The sentences of the test are others than those
of the training; what is filled into them (names, times, rooms) is mixed for both.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

VALUES = {
    "person": ["Anna", "Ben", "Clara", "David", "Eva", "Frank", "Grace", "Henry", "Ida", "Jack", "Mom", "Dad"],
    "time": ["6:30", "7:00", "7:15", "8:45", "9:10", "12:00", "14:20", "17:05", "18:00", "21:30"],
    "minutes": ["2", "3", "5", "8", "10", "12", "15", "20", "25", "30", "45", "60"],
    "room": ["kitchen", "bedroom", "garage", "hall", "office", "bathroom", "garden", "attic"],
    "city": ["Paris", "Rome", "Oslo", "Berlin", "Madrid", "Vienna", "Tokyo", "Lima", "Cairo", "Delhi"],
    "song": ["Yesterday", "Imagine", "Hallelujah", "Thriller", "Africa", "Waterloo", "Creep", "Zombie"],
    "percent": ["10", "20", "30", "40", "50", "60", "70", "80", "90", "100"],
    "app": ["Maps", "Camera", "Mail", "Photos", "Calendar", "Music", "Notes", "Clock"],
    "item": ["milk", "bread", "eggs", "apples", "coffee", "rice", "soap", "cheese", "butter", "tea"],
    "degrees": ["17", "18", "19", "20", "21", "22", "23", "24"],
}

# name, description, argument, sentences of the training, sentences of the test
FUNCTIONS: list[tuple[str, str, str, list[str], list[str]]] = [
    ("call_contact", "call a person on the phone", "person",
     ["Call {}.", "Please phone {}.", "Start a call with {}.", "I want to talk to {} on the phone.", "Ring {} for me."],
     ["Could you call {} now?", "Give {} a call on the phone."]),
    ("send_message", "send a text message to a person", "person",
     ["Text {}.", "Send a message to {}.", "Write {} a text message.", "Message {} for me.", "Send {} a text."],
     ["Please send a text message to {}.", "I want to message {}."]),
    ("set_alarm", "set an alarm for a time of the day", "time",
     ["Wake me at {}.", "Set an alarm for {}.", "Alarm at {} please.", "I have to wake up at {}.",
      "Set my alarm to {}."],
     ["Please wake me up at {}.", "Can you set the alarm for {}?"]),
    ("set_timer", "start a timer of some minutes", "minutes",
     ["Set a timer for {} minutes.", "Timer, {} minutes.", "Start a timer of {} minutes.", "Count down {} minutes.",
      "Remind me when {} minutes are over."],
     ["Please start a {} minutes timer.", "I need a timer for {} minutes."]),
    ("light_on", "switch on the light in a room", "room",
     ["Turn on the light in the {}.", "Switch the {} light on.", "Light on in the {}.", "Make the {} bright.",
      "Please switch on the {} lamp."],
     ["Can you turn the light in the {} on?", "Switch on the light in the {}."]),
    ("light_off", "switch off the light in a room", "room",
     ["Turn off the light in the {}.", "Switch the {} light off.", "Light off in the {}.", "Make the {} dark.",
      "Please switch off the {} lamp."],
     ["Can you turn the light in the {} off?", "Switch off the light in the {}."]),
    ("get_weather", "tell the weather in a city", "city",
     ["What is the weather in {}?", "Weather in {}.", "Is it raining in {}?", "How warm is it in {}?",
      "Tell me the weather forecast for {}."],
     ["How is the weather in {} today?", "What weather do they have in {}?"]),
    ("get_time", "tell the time of the day in a city", "city",
     ["What time is it in {}?", "Tell me the time in {}.", "Local time in {}.", "How late is it in {}?",
      "What does the clock say in {}?"],
     ["Do you know what time it is in {}?", "What is the local time in {}?"]),
    ("navigate_to", "show the way to a city", "city",
     ["Take me to {}.", "Navigate to {}.", "Show me the way to {}.", "How do I get to {}?", "Directions to {}."],
     ["I want to drive to {}, show me the way.", "Start the navigation to {}."]),
    ("book_hotel", "book a hotel in a city", "city",
     ["Book a hotel in {}.", "I need a hotel in {}.", "Find me a hotel room in {}.", "Reserve a hotel in {}.",
      "Get me a place to sleep in {}."],
     ["Please book me a hotel in {}.", "Can you reserve a hotel room in {}?"]),
    ("play_song", "play a song", "song",
     ["Play {}.", "I want to hear {}.", "Put on {}.", "Play the song {}.", "Let me listen to {}."],
     ["Please play the song {} for me.", "Can you play {}?"]),
    ("add_to_playlist", "add a song to the playlist", "song",
     ["Add {} to my playlist.", "Put {} on the playlist.", "Save {} to the playlist.", "My playlist needs {}.",
      "Keep {} in my playlist."],
     ["Please add the song {} to the playlist.", "I want {} on my playlist."]),
    ("set_volume", "set the volume in percent", "percent",
     ["Set the volume to {} percent.", "Volume {} percent.", "Make it {} percent loud.",
      "Turn the volume to {} percent.", "I want a volume of {} percent."],
     ["Please set the volume at {} percent.", "Change the volume to {} percent."]),
    ("set_brightness", "set the brightness of the screen in percent", "percent",
     ["Set the brightness to {} percent.", "Brightness {} percent.", "Screen at {} percent brightness.",
      "Turn the brightness to {} percent.", "I want a brightness of {} percent."],
     ["Please set the screen brightness at {} percent.", "Change the brightness to {} percent."]),
    ("open_app", "open an app", "app",
     ["Open {}.", "Start the {} app.", "Launch {}.", "Show me the {} app.", "I want to use {}."],
     ["Please open the {} app.", "Can you start {}?"]),
    ("close_app", "close an app", "app",
     ["Close {}.", "Quit the {} app.", "Stop {}.", "Get rid of the {} app.", "I am done with {}."],
     ["Please close the {} app.", "Can you quit {}?"]),
    ("add_to_list", "add a thing to the shopping list", "item",
     ["Add {} to the shopping list.", "We need {}.", "Put {} on the shopping list.", "Buy {}.", "I ran out of {}."],
     ["Please put {} on my shopping list.", "Add {} to the list of things to buy."]),
    ("remove_from_list", "remove a thing from the shopping list", "item",
     ["Remove {} from the shopping list.", "We have {} already.", "Take {} off the shopping list.", "I don't need {}.",
      "Cross out {} on the list."],
     ["Please take {} off my shopping list.", "Remove {} from the list of things to buy."]),
    ("set_heating", "set the heating to degrees", "degrees",
     ["Set the heating to {} degrees.", "Heat to {} degrees.", "Make it {} degrees in here.",
      "I want it {} degrees warm.", "Thermostat to {} degrees."],
     ["Please set the heating at {} degrees.", "Turn the thermostat to {} degrees."]),
    ("lock_door", "lock the door of a room", "room",
     ["Lock the {} door.", "Lock the door of the {}.", "Please lock the {}.", "Is the {} locked? Do it.",
      "No one should get into the {}."],
     ["Can you lock the door of the {}?", "Make sure that the {} door is locked."]),
]  # fmt: skip

PROMPT = "Query: {}\nCall:"
PER_SENTENCE = 4
"""How often a sentence of the training is there, with other values each time."""


def main(folder: Path) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    functions = [{"name": name, "description": description} for name, description, *_ in FUNCTIONS]
    (folder / "functions.json").write_text(json.dumps(functions, indent=2) + "\n", encoding="utf-8")
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for index, (_, _, argument, *sentences) in enumerate(FUNCTIONS):
        for name, count, known in zip(lines, (PER_SENTENCE, 2), sentences, strict=True):
            for sentence in known:
                for value in draw.sample(VALUES[argument], count):
                    entry = {
                        "prompt": PROMPT.format(sentence.format(value)),
                        "completion": f"<fn_{index}>({value})<fn_end>",
                    }
                    lines[name].append(json.dumps(entry))
    for name, entries in lines.items():
        draw.shuffle(entries)
        (folder / f"{name}.jsonl").write_text("\n".join(entries) + "\n", encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(entries)} examples")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
