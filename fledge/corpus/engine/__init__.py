"""How work is cut into units that can die and be repeated, and who runs them: a process pool, Ray, or one rank of many."""
