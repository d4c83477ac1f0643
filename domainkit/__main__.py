"""`python -m domainkit` is the same as `domainkit`."""

from domainkit.cli import main

if __name__ == "__main__":
    main()
