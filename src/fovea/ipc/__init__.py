"""Between the processes of a server: frames, shared memory, the workers' mains, and those who watch over them."""
