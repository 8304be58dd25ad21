"""Hub ids, against a small HTTP server that answers as the hub does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub import constants

from smc.errors import InputError
from smc.frontend import load_checkpoint

Make = Callable[..., tuple[Path, Any]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Serves the files in `folder` as the model org/tiny; other models answer with a status and an error code."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        model = "/".join(self.path.removeprefix("/api/models").split("/")[1:3])
        if model != "org/tiny":
            status, code = {"org/gated": (403, "GatedRepo"), "org/broken": (500, "")}.get(model, (404, "RepoNotFound"))
            self.reply(status, b"", {"X-Error-Code": code})
        elif self.path.startswith("/api/"):
            names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
            if "/tree/" in self.path:
                files = [{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names]
                self.reply(200, json.dumps(files).encode())
            else:
                siblings = [{"rfilename": name} for name in names]
                info = {
                    "id": model,
                    "modelId": model,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                }
                self.reply(200, json.dumps(info).encode())
        else:
            name = self.path.split(f"/resolve/{COMMIT}/")[-1]
            self.asked.append(name)
            data = (self.folder / name).read_bytes()
            self.reply(200, data if with_body else b"", {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, len(data))

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    Hub.folder, Hub.asked = tmp_path / "org-tiny", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield Hub
    server.shutdown()
    server.server_close()


def test_download(hub: type[Hub], make_checkpoint: Make) -> None:
    folder, model = make_checkpoint()
    folder.rename(hub.folder)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "README.md", "original/model.safetensors"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"not wanted")
    module = load_checkpoint("org/tiny")
    assert module.facts.name == "tiny"
    assert module.parameters["model.norm.weight"].values().tolist() == model.model.norm.weight.tolist()
    assert set(hub.asked) == {"config.json", "generation_config.json", "model.safetensors"}
    # From now on the cache serves, whether or not the hub can be reached.
    hub.asked.clear()
    load_checkpoint("org/tiny")
    assert not hub.asked


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("org/unknown", "org/unknown is neither a local folder nor a model on the hub (or it is private)"),
        ("org/gated", "org/gated is gated: accept its licence on the hub, then log in with `hf auth login`"),
        ("org/broken", "org/broken is not a local folder, and it can't be downloaded from the hub now"),
    ],
)
def test_refusals(hub: type[Hub], model: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_checkpoint(model)
    assert str(caught.value).startswith(sentence)
