"""Print "version;folder;cxx11 abi" of this Python's torch, without importing it."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

OLDEST = (2, 9)

spec = find_spec("torch")
if spec is None or spec.origin is None:
    sys.exit(f"there is no torch in {sys.prefix}")
root = Path(spec.origin).parent
found = re.search(r"""__version__ = ['"]((\d+)\.(\d+)[^'"]*)""", (root / "version.py").read_text())
if found is None:
    sys.exit(f"{root / 'version.py'} has no version")
version = found[1]
if (int(found[2]), int(found[3])) < OLDEST:
    sys.exit(f"torch {version} in {root} is older than {OLDEST[0]}.{OLDEST[1]}")
config = root / "share" / "cmake" / "Torch" / "TorchConfig.cmake"
flag = re.search(r"_GLIBCXX_USE_CXX11_ABI=(\d)", config.read_text() if config.is_file() else "")
if not (root / "include" / "torch").is_dir():
    sys.exit(f"torch {version} in {root} has no headers")
print(version.split("+")[0], root.as_posix(), flag[1] if flag else "1", sep=";")
