"""A docker archive of a small static HTTP server, made here: no registry, no shell and no library in the image."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

PORT = 18099

SERVER = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static int listen_on(int port)
{
    int on = 1, taken = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(taken, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(taken, (struct sockaddr *)&address, sizeof address) || listen(taken, 64))
        exit(3);
    return taken;
}
int main(int count, char **arguments)
{
    const char *how = count > 2 ? arguments[2] : "serve";
    char said[4096], reply[8192];
    gid_t groups[8];
    int more = getgroups(8, groups);
    if (!strcmp(how, "unwell")) {
        printf("the disk is on fire\n");
        return 4;
    }
    if (!strcmp(how, "well"))
        return 0;
    if (!strcmp(how, "end")) {
        printf("no configuration\n");
        return 7;
    }
    snprintf(said, sizeof said, "uid=%d gid=%d more=%d:%d cwd=%s MODE=%s HOME=%s EXTRA=%s\n", getuid(), getgid(), more,
         more > 0 ? (int)groups[0] : -1, getcwd(reply, sizeof reply), getenv("MODE"), getenv("HOME"), getenv("EXTRA"));
    FILE *again = fopen("/dev/stdout", "a"); /* as nginx opens its log, by a name */
    fputs(again ? said : "no stdout\n", again ? again : stdout);
    fflush(NULL);
    if (!strcmp(how, "idle"))
        pause();
    int taken = listen_on(atoi(arguments[1]));
    for (;;) {
        int client = accept(taken, NULL, NULL);
        ssize_t got = read(client, reply, sizeof reply);
        const char *status = !strcmp(how, "missing") ? "404 Not Found" : "200 OK";
        int length = snprintf(reply, sizeof reply, "HTTP/1.0 %s\r\nContent-Length: %zu\r\n\r\n%s", status,
                              strlen(said), said);
        if (!strcmp(how, "other"))
            length = snprintf(reply, sizeof reply, "SSH-2.0-tare\r\n\r\n");
        if (got > 0 && write(client, reply, length) < 0)
            return 5;
        close(client);
    }
}
"""
CONFIG: dict[str, Any] = {
    "Entrypoint": ["/srv/server", str(PORT)],
    "Env": ["MODE=image"],
    "User": "web",
    "WorkingDir": "/srv",
    "ExposedPorts": {f"{PORT}/tcp": {}},
}
ETC = {
    "etc/passwd": b"root:x:0:0::/root:/none\nweb:x:1234:1235::/srv:/none\n",
    "etc/group": b"web:x:1235:\nlogs:x:77:root,web\n",
}


def make_archive(folder: Path, **config: Any) -> Path:
    """``service.tar`` in ``folder``: a docker archive, its configuration that above with ``config`` changed."""
    (folder / "server.c").write_text(SERVER)
    argv = ["gcc", "-static", "-Os", "-o", "server", "server.c"]
    subprocess.run(argv, cwd=folder, check=True, timeout=60)
    files = {"srv/server": (folder / "server").read_bytes(), "srv/data": b"#!\n", **ETC}
    described = {"architecture": "amd64", "os": "linux", "config": {**CONFIG, **config}}
    manifest = [{"Config": "config.json", "RepoTags": ["mine:1"], "Layers": ["layer.tar"]}]
    outer = {"manifest.json": _json(manifest), "config.json": _json(described), "layer.tar": _tar(files)}
    archive = folder / "service.tar"
    archive.write_bytes(_tar(outer))
    return archive


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644 if name == "srv/data" else 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
