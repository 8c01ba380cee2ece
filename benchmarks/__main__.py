"""`python -m benchmarks`."""

import sys

try:
    from benchmarks.command import main
except ModuleNotFoundError as missing:
    sys.exit(f"the benchmarks need {missing.name}: pip install -e '.[bench]'")

if __name__ == "__main__":
    main()
