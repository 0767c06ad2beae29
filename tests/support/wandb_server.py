"""A stand-in for the server of Weights & Biases, as much of it as runs need."""

import contextlib
import gzip
import http.server
import json
import threading

PROJECT = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "me"}, "internalId": "1"}
STATES = {0: "finished", 255: "killed"}
EMPTY = ("tags", "sweep", "notes", "jobType", "commit", "description", "systemMetrics")


class Server(http.server.ThreadingHTTPServer):
    """The server, which keeps the runs by id, and counts how often a run was opened."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs, self.opened = {}, 0

    def answer(self, query, variables):
        run = self.runs.get(variables.get("name"))
        if "upsertBucket" in query:
            if variables.get("groupName"):
                self.opened += 1
            run = run or {"history": [], "summary": {}, "id": variables["name"]}
            self.runs[run["id"]] = run | {
                "state": "running",
                "group": variables.get("groupName") or run.get("group"),
                "config": json.loads(variables["config"]),
            }
            return {"upsertBucket": {"bucket": self.node(self.runs[run["id"]]), "inserted": True}}
        if "bucket(" in query:
            return {"model": PROJECT | {"bucket": self.node(run) if run else None}}
        if "runs(" in query:
            group = json.loads(variables["filters"])["group"]
            nodes = [self.node(run) for run in self.runs.values() if run["group"] == group]
            edges = [{"node": node, "cursor": node["name"]} for node in nodes]
            page = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return {"project": PROJECT | {"runCount": len(edges), "readOnly": False, "runs": page}}
        me = {"id": "u", "name": "me", "username": "me", "entity": "me", "flags": "{}"}
        versions = {"cliVersionInfo": {"max_cli_version": "9"}, "features": []}
        files = {"runID": "x", "uploadHeaders": [], "files": []}
        return {"viewer": me, "serverInfo": versions, "createRunFiles": files}

    def node(self, run):
        lines = [json.dumps(row) for row in run["history"]]
        return dict.fromkeys(EMPTY) | {
            "id": run["id"], "name": run["id"], "displayName": run["id"], "group": run["group"],
            "state": run["state"], "config": json.dumps(run["config"]), "wandbConfig": "{}",
            "summaryMetrics": json.dumps(run["summary"]), "historyLineCount": len(lines),
            "historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "eventsLineCount": 0,
            "logLineCount": 0, "project": PROJECT, "projectId": 1, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00",
            "user": {"name": "me", "username": "me"}, "sweepName": None, "historyKeys": None,
        }  # fmt: skip

    def receive(self, run, data):
        """Take a part of the stream of a run."""
        for name, part in (data.get("files") or {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                run["history"][part["offset"] :] = rows
            elif name == "wandb-summary.json":
                run["summary"] = rows[-1]
        if data.get("complete"):
            run["exit_code"] = data["exitcode"]
            run["state"] = STATES.get(data["exitcode"], "failed")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        data, answer = json.loads(body or b"{}"), {}
        if self.path.endswith("/graphql"):
            answer = {"data": self.server.answer(data["query"], data.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.receive(self.server.runs[self.path.split("/")[-2]], data)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    """A server, until the end of the block."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
