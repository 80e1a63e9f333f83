"""A stand-in of the Hugging Face hub: its HTTP interface on 127.0.0.1, with repositories in memory."""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LARGE = 10_000
"""Bytes above which a file that is uploaded counts as large (LFS); a file of weights always does."""

Files = Mapping[str, bytes | str]


@dataclass
class Repository:
    """A repository: the files of each commit, and the commit of each branch."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: set[str] = field(default_factory=set)
    """Paths of the files that were uploaded by LFS."""

    def commit(self, files: Mapping[str, bytes], branch: str, message: str) -> str:
        """Adds files to a branch; returns the hash of the commit."""
        whole = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        named = repr((self.name, branch, len(self.commits), sorted(whole))).encode()
        commit = hashlib.sha1(named).hexdigest()
        self.commits[commit], self.branches[branch] = whole, commit
        self.messages.append(message)
        return commit

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the branch `main`, by path."""
        return self.commits[self.branches["main"]]

    def resolved(self, revision: str) -> str | None:
        """Returns the commit of a branch or of a hash; None if there is none."""
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Token:
    """An access token of a user: `role` is read, write or fineGrained."""

    user: str
    role: str = "write"
    accepted: set[str] = field(default_factory=set)
    """The gated repositories that the user may read."""


@dataclass
class Cut:
    """A download that breaks off after some bytes, as often as `times`."""

    after: int
    times: int


class Hub:
    """Repositories, tokens and the requests for them. `url` is the address of the stand-in.

    A test adds repositories (`add`) and tokens, may let downloads break off (`cut`) or requests fail
    (`failing`), and looks at `requests` and `repositories` afterwards.
    """

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, Token] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers (by their names in small letters) of each request, in order."""
        self.failing: dict[str, int] = {}
        """The status with which requests fail, by a part of "METHOD path"."""
        self.cuts: dict[str, Cut] = {}
        self.blobs: dict[str, bytes] = {}
        """Large files that were uploaded, by their SHA-256."""

    def add(
        self,
        name: str,
        files: Files | Path,
        kind: str = "model",
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Commits files (or the files of a folder) to a branch of a repository; returns the commit's hash.

        Args:
            name: `OWNER/NAME`.
            files: contents by path, or a folder.
            kind: model or dataset.
            revision: the branch; each one is apart from the others.
            private: whether only its owner may read it.
            gated: whether only tokens that accepted its licence may read its files.
        """
        if isinstance(files, Path):
            given: Files = {
                f.relative_to(files).as_posix(): f.read_bytes() for f in files.rglob("*") if f.is_file()
            }
        else:
            given = files
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        repository.private, repository.gated = private, gated
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in given.items()}
        return repository.commit(contents, revision, "added")

    def cut(self, path: str, after: int, times: int = 1) -> None:
        """Lets the next `times` downloads of the file `path` break off after some bytes."""
        self.cuts[path] = Cut(after, times)

    def asked(self, method: str, part: str = "") -> list[str]:
        """The paths of the requests of a method that contain `part`."""
        return [path for of, path, _ in self.requests if of == method and part in path]

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The variables with which another process asks this stand-in, with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({} if token is None else {"HF_TOKEN": token}),
        }

    def be_asked(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Has this process ask this stand-in, with an empty cache in `home` and without a token."""
        import datasets
        import huggingface_hub
        import transformers
        from huggingface_hub import constants, hf_api

        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
        monkeypatch.setattr("amid.models.hub._asked", {})
        huggingface_hub.HfFileSystem.clear_instance_cache()


@contextmanager
def serving() -> Iterator[Hub]:
    """Yields a stand-in that answers on a free port until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message}
        of_code = {"X-Error-Code": code} if code else {}
        self.headers = {"X-Error-Message": message, **of_code, **headers}


KINDS = {"models": "model", "datasets": "dataset"}


class _Answers(BaseHTTPRequestHandler):
    """Answers one connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        self.body = self._read_body()
        try:
            for part, status in self.hub.failing.items():
                if part in f"{self.command} {path}":
                    raise _Refused(status, "out of order")
            for pattern, answer in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, **found.groupdict())
                    return
            raise _Refused(404, f"the stand-in has no {self.command} {path}")
        except _Refused as error:
            self._json(error.body, error.status, error.headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            if sent is not None:
                self.wfile.flush()
                self.close_connection = True

    def _json(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        given = {"Content-Type": "application/json", **(headers or {})}
        self._send(status, json.dumps(content).encode(), given)

    def _token(self) -> Token | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and given not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(given)

    def _writer(self, owner: str) -> Token:
        token = self._token()
        if token is None:
            raise _Refused(401, "Invalid username or password.")
        if token.role == "read" or token.user != owner:
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}.")
        return token

    def _repository(self, kind: str, name: str) -> Repository:
        token, found = self._token(), self.hub.repositories.get((kind, name))
        hidden = found is not None and found.private and not (token and token.user == name.split("/")[0])
        if found is None or hidden:
            if token is None:  # by its address the client knows it too, but only from https on
                raise _Refused(401, "Invalid username or password.", "RepoNotFound")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return found

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.resolved(revision)
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def up(self) -> None:
        self._send(200, b"", {})

    def whoami(self) -> None:
        token = self._token()
        if token is None:
            raise _Refused(401, "Invalid username or password.")
        access = {"accessToken": {"displayName": "test", "role": token.role}}
        self._json({"type": "user", "name": token.user, "orgs": [], "auth": access})

    def info(self, kind: str, name: str, revision: str | None = None) -> None:
        repository = self._repository(KINDS[kind], name)
        commit = self._commit_of(repository, revision or "main")
        files = repository.commits[commit]
        self._json(
            {
                "_id": "0",
                "id": name,
                "sha": commit,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path, "size": len(text)} for path, text in files.items()],
            }
        )

    def tree(self, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        repository = self._repository(KINDS[kind], name)
        files = repository.commits[self._commit_of(repository, revision)]
        recursive = self.query.get("recursive", ["False"])[0].lower() == "true"
        rows, prefix = _rows(files), f"{folder}/" if folder else ""
        within = [row for row in rows if row["path"].startswith(prefix)]
        if folder and not within:
            raise _Refused(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        self._json([r for r in within if recursive or "/" not in r["path"].removeprefix(prefix)])

    def paths_info(self, kind: str, name: str, revision: str) -> None:
        repository = self._repository(KINDS[kind], name)
        files = repository.commits[self._commit_of(repository, revision)]
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        self._json([row for row in _rows(files) if row["path"] in paths])

    def resolve(self, name: str, revision: str, path: str, kind: str | None = None) -> None:
        repository = self._repository(KINDS[kind or "models"], name)
        self._check_gate(repository)
        commit = self._commit_of(repository, revision)
        content = repository.commits[commit].get(path)
        if content is None:
            raise _Refused(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            if first >= len(content):
                raise _Refused(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        cut = self.hub.cuts.get(path)
        if cut and cut.times and self.command == "GET":
            cut.times -= 1
            self._send(status, content, headers, sent=cut.after)
        else:
            self._send(status, content, headers)

    def _check_gate(self, repository: Repository) -> None:
        token, name = self._token(), repository.name
        if repository.gated and (token is None or name not in token.accepted):
            log_in = "You must have access to it and be authenticated to access it. Please log in."
            ask = f"You are not in the authorized list. Visit {self.hub.url}/{name} to ask for access."
            message = f"Access to model {name} is restricted. {log_in if token is None else ask}"
            raise _Refused(401 if token is None else 403, message, "GatedRepo")

    def create(self) -> None:
        given = json.loads(self.body)
        token = self._token()
        owner = given.get("organization") or (token.user if token else "")
        self._writer(owner)
        kind, name = given.get("type") or "model", f"{owner}/{given['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        url = f"{self.hub.url}/{prefix}{name}"
        if (kind, name) in self.hub.repositories:
            self._json({"error": f"You already created this {kind} repo", "url": url}, 409)
            return
        private = given.get("visibility") == "private" or bool(given.get("private"))
        made = self.hub.repositories[kind, name] = Repository(kind, name, private)
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main", "initial commit")
        self._json({"url": url, "name": name, "id": name})

    def delete(self) -> None:
        given = json.loads(self.body)
        owner = given.get("organization") or ""
        self._writer(owner)
        if (
            self.hub.repositories.pop((given.get("type") or "model", f"{owner}/{given['name']}"), None)
            is None
        ):
            raise _Refused(404, "Repository not found", "RepoNotFound")
        self._json({})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", content, re.DOTALL)
        errors = [] if found else ["empty or missing yaml metadata in repo card"]
        if found:
            errors = _wrong(yaml.safe_load(found[1]))
        if errors:
            self._json({"errors": [{"message": error} for error in errors], "warnings": []}, 400)
        else:
            self._json({"errors": [], "warnings": []})

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self._writer(name.split("/")[0])
        repository = self._repository(KINDS[kind], name)
        known = repository.commits[self._commit_of(repository, revision)]
        found = []
        for file in json.loads(self.body)["files"]:
            large = file["size"] > LARGE or file["path"].endswith((".safetensors", ".bin", ".gguf"))
            mode, there = "lfs" if large else "regular", known.get(file["path"])
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else _oid(there)
            found.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": found})

    def lfs_batch(self, name: str, kind: str | None = None) -> None:
        self._writer(name.split("/")[0])
        self._json(
            {
                "transfer": "basic",
                "objects": [
                    {
                        "oid": one["oid"],
                        "size": one["size"],
                        "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
                    }
                    for one in json.loads(self.body)["objects"]
                ],
            }
        )

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "the content has another checksum")
        self.hub.blobs[oid] = self.body
        self._send(200, b"", {})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self._writer(name.split("/")[0])
        repository, message = self._repository(KINDS[kind], name), ""
        files: dict[str, bytes] = {}
        gone: list[str] = []
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
                repository.large.add(value["path"])
            elif operation["key"] == "deletedFile":
                gone.append(value["path"])
            else:
                raise _Refused(400, f"the stand-in has no operation {operation['key']}")
        commit = repository.commit(files, revision, message)
        for path in gone:
            del repository.commits[commit][path]
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._json({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": uuid.uuid4().hex})


def _oid(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _rows(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The entries of a tree: its folders and its files."""
    folders = {parent.as_posix() for path in files for parent in Path(path).parents} - {"."}
    rows = [{"type": "directory", "path": path, "size": 0, "oid": _oid(path.encode())} for path in folders]
    rows += [
        {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
        for path, content in files.items()
    ]
    return sorted(rows, key=lambda row: row["path"])


def _wrong(metadata: Any) -> list[str]:
    """What the hub's validation would refuse in the metadata of a card."""
    if not isinstance(metadata, dict):
        return ["the metadata is no mapping"]
    errors = []
    for key in ("tags", "datasets", "language"):
        value = metadata.get(key, [])
        if not isinstance(value, str | list) or not all(isinstance(one, str) for one in value):
            errors.append(f'"{key}" must be a string or a list of strings')
    relations = ("adapter", "finetune", "merge", "quantized")
    if metadata.get("base_model_relation", "finetune") not in relations:
        errors.append(f'"base_model_relation" must be one of {", ".join(relations)}')
    for key in ("base_model", "datasets"):
        value = metadata.get(key, [])
        for one in [value] if isinstance(value, str) else value:
            if not re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", str(one)):
                errors.append(f'"{key}" with value "{one}" is not valid: use an id of the hub')
    for index in metadata.get("model-index", []):
        for result in index.get("results", [{}]):
            for path in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not result.get(path[0], {}).get(path[1]):
                    errors.append(f'"model-index[0].results[0].{".".join(path)}" is required')
            for metric in result.get("metrics", [{}]):
                if "type" not in metric or "value" not in metric:
                    errors.append('"model-index[0].results[0].metrics" must have type and value')
    return errors


_OF = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+(?:/[^/]+)?)"
ROUTES: list[tuple[str, Any]] = [
    (r"(?:HEAD|GET) /?", _Answers.up),
    (r"GET /api/whoami-v2", _Answers.whoami),
    (r"POST /api/repos/create", _Answers.create),
    (r"DELETE /api/repos/delete", _Answers.delete),
    (r"POST /api/validate-yaml", _Answers.validate_yaml),
    (rf"GET {_OF}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Answers.tree),
    (rf"POST {_OF}/paths-info/(?P<revision>.+)", _Answers.paths_info),
    (rf"POST {_OF}/preupload/(?P<revision>.+)", _Answers.preupload),
    (rf"POST {_OF}/commit/(?P<revision>.+)", _Answers.commit),
    (rf"GET {_OF}/revision/(?P<revision>.+)", _Answers.info),
    (rf"GET {_OF}", _Answers.info),
    (
        r"POST /(?:(?P<kind>datasets)/)?(?P<name>.+)\.git/info/lfs/objects/batch",
        _Answers.lfs_batch,
    ),
    (r"PUT /lfs/(?P<oid>\w+)", _Answers.lfs_put),
    (
        r"(?:HEAD|GET) /(?:(?P<kind>datasets)/)?(?P<name>[^/]+(?:/[^/]+)?)"
        r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Answers.resolve,
    ),
]
