"""`python -m protein_atlas`, and `torchrun -m protein_atlas`, `accelerate launch -m protein_atlas`: the commands."""
from protein_atlas.cli import main

if __name__ == "__main__":
    main()
