"""The JSON schemas of the results (`sao.results`), one file for each kind in docs/schemas.

python scripts/schemas.py            compare with the files
python scripts/schemas.py --write    write them
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sao.results import RESULTS

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


def schemas() -> dict[str, str]:
    """The text of each schema by the name of its file."""
    texts = {}
    for result in RESULTS:
        schema = result.model_json_schema(mode="serialization")
        texts[f"{schema['properties']['kind']['const']}.json"] = (
            json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        )
    return texts


def changed(folder: Path = FOLDER) -> list[str]:
    """The names of the files that are missing, that differ, or that no result has any more."""
    new = schemas()
    old = {path.name: path.read_text("utf-8") for path in folder.glob("*.json")}
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    names = changed()
    if args.write:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in names:
            (FOLDER / name).unlink(missing_ok=True)
            if name in schemas():
                (FOLDER / name).write_text(schemas()[name], "utf-8")
        print(f"written: {', '.join(names) or 'nothing'}")
        return 0
    print(f"changed: {', '.join(names)}" if names else "the same")
    return bool(names)


if __name__ == "__main__":
    raise SystemExit(main())
