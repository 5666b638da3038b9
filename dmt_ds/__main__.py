"""`python -m dmt_ds` is the command `dmt-ds`: what launchers such as torchrun start."""

from dmt_ds.cli import main

if __name__ == "__main__":
    main()
