"""`python -m clipfake`: the command line, where nothing was installed."""

from .cli import main

if __name__ == "__main__":
    main()
