"""What the smart speaker can do. smc reads names, types and docstrings; it never runs this file."""

from typing import Literal


def light(room: Literal["kitchen", "bedroom", "hall"], on: bool) -> None:
    """Switch the light of a room on or off."""


def thermostat(degrees: int) -> None:
    """Set the heating to a temperature."""


def weather(city: str) -> None:
    """Tell the weather in a city."""
