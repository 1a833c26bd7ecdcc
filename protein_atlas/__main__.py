"""`python -m protein_atlas`, and so `torchrun -m protein_atlas` and `accelerate launch -m protein_atlas`: the commands."""
from protein_atlas.cli import main

if __name__ == "__main__":
    main()
