"""Finding what is wrong: what must hold of the hypervisor's state after every op."""
