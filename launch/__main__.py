"""python -m stepahead.launch is the command `stepahead`."""

from .cli import main

if __name__ == "__main__":
    main()
