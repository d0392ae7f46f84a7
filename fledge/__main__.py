"""`python -m fledge`: what `torchrun -m fledge` and `accelerate launch -m fledge` start."""

from fledge.cli import main

if __name__ == "__main__":
    main()
