"""Checks settings and connections step by step: `python diagnose.py --help`."""

from config import {{ cookiecutter.__class }}Settings

from shared.diagnose import main

if __name__ == "__main__":
    raise SystemExit(main({{ cookiecutter.__class }}Settings))
