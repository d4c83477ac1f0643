"""What a concept graph is made of: its files, and the compilers that make them from other people's sources."""
