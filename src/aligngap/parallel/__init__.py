"""One model over several processes: the role that training sees, and its implementation."""
