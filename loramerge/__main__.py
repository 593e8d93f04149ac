"""`python -m loramerge`."""

from loramerge.cli.main import console_entry

if __name__ == "__main__":
    console_entry()
