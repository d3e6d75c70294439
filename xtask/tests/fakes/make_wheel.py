"""Makes the wheel `fake_cuda` and prints its line of a requirements file.

Usage: make_wheel.py DIRECTORY PATH_IN_WHEEL=FILE ...
"""

import hashlib
import pathlib
import sys
import zipfile

directory, *members = sys.argv[1:]
metadata = "fake_cuda-1.0.dist-info"
wheel = pathlib.Path(directory) / "fake_cuda-1.0-py3-none-any.whl"
contents = [tuple(member.split("=", 1)) for member in members]
files = {name: pathlib.Path(file).read_bytes() for name, file in contents}
files[f"{metadata}/METADATA"] = b"Metadata-Version: 2.1\nName: fake-cuda\nVersion: 1.0\n"
files[f"{metadata}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
record = "".join(f"{name},,\n" for name in [*files, f"{metadata}/RECORD"])
files[f"{metadata}/RECORD"] = record.encode()
with zipfile.ZipFile(wheel, "w") as archive:
    for name, content in files.items():
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (0o100755 if "/bin/" in name else 0o100644) << 16
        archive.writestr(entry, content)
print(f"fake-cuda==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
