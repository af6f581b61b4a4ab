"""Put Swagger UI and ReDoc into gateway/docs_pages/vendor, from the npm packages that they are published in.

``python scripts/docs_assets.py`` needs npm and the network; what it writes is
committed, so that nothing else does. To move to another version, change it
here together with its checksum: ``npm view NAME@VERSION dist.integrity``.

No Python package is fit: drf-spectacular-sidecar, which is well kept, asks for
Django, flask-openapi3-swagger and -redoc for Flask; swagger-ui-bundle has had
no release since 2023.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "gateway" / "docs_pages" / "vendor"


@dataclass(frozen=True, slots=True)
class Package:
    """A package on npm, and what is taken from it.

    Attributes:
        integrity: the SHA-512 of the package's archive, as npm writes it.
        files: by path within the package, under which name each is kept.
        changes: texts that stand exactly once in all the files together, and what takes their places.
    """

    name: str
    version: str
    integrity: str
    files: dict[str, str]
    changes: dict[str, str]


PACKAGES = (
    Package(
        "swagger-ui-dist",
        "5.35.0",
        "sha512-U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
        {
            "swagger-ui-bundle.js": "swagger-ui.js",
            "swagger-ui.css": "swagger-ui.css",
            "LICENSE": "swagger-ui.LICENSE.txt",
            "NOTICE": "swagger-ui.NOTICE.txt",
            "swagger-ui-bundle.js.LICENSE.txt": "swagger-ui-bundle.js.LICENSE.txt",
        },
        # Source maps stay behind: they are larger than the scripts.
        {"/*# sourceMappingURL=swagger-ui.css.map*/": ""},
    ),
    Package(
        "redoc",
        "2.5.4",
        "sha512-M6jWhG1qoBnH6TFmzJnstyCZ87HmOY/UzDm78mHiYihEdlV/YcS9ogOo1NlElnJMeLsyxHFe2yFc4sNjHTrABQ==",
        {
            "bundles/redoc.standalone.js": "redoc.js",
            "LICENSE": "redoc.LICENSE.txt",
            "bundles/redoc.standalone.js.LICENSE.txt": "redoc.standalone.js.LICENSE.txt",
        },
        {
            "//# sourceMappingURL=redoc.standalone.js.map": "",
            # A picture from the makers' host. This one is empty, upon which ReDoc leaves it out.
            "https://cdn.redoc.ly/redoc/logo-mini.svg": "data:,",
        },
    ),
)


def main() -> None:
    """Fetch, check, and write."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    kept = {name: data for package in PACKAGES for name, data in files_of(package).items()}
    versions = "".join(f"{package.name} {package.version}\n" for package in PACKAGES)
    kept["VERSIONS.txt"] = f"Written by scripts/docs_assets.py from these npm packages:\n\n{versions}".encode()
    for path in VENDOR.iterdir():
        if path.name not in kept:
            path.unlink()
    for name, data in kept.items():
        (VENDOR / name).write_bytes(data)
        print(f"{len(data):>9,}  {name}")


def files_of(package: Package) -> dict[str, bytes]:
    """Return the files of a package by the names that they are kept under; exit if anything is not as expected."""
    npm = shutil.which("npm") or sys.exit("npm is not installed; it comes with Node.js")
    with tempfile.TemporaryDirectory() as scratch:
        # Every argument stands in this file; nothing passes through a shell.
        subprocess.run(  # noqa: S603
            [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"],
            cwd=scratch,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (archive,) = Path(scratch).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if f"sha512-{digest}" != package.integrity:
            sys.exit(f"{package.name} {package.version} has the checksum sha512-{digest}, not the one of this script")
        with tarfile.open(archive) as tar:
            kept = {name: _read(tar, f"package/{path}") for path, name in package.files.items()}
    for text, replacement in package.changes.items():
        holders = [name for name, data in kept.items() if text.encode() in data]
        if len(holders) != 1 or kept[holders[0]].count(text.encode()) != 1:
            sys.exit(f"{package.name} {package.version} no longer has {text!r} exactly once")
        kept[holders[0]] = kept[holders[0]].replace(text.encode(), replacement.encode())
    return kept


def _read(tar: tarfile.TarFile, path: str) -> bytes:
    member = tar.extractfile(path)
    if member is None:
        sys.exit(f"{path} is no file")
    return member.read()


if __name__ == "__main__":
    main()
