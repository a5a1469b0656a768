"""LIBERO's and robosuite's tasks, in a process of their own: they want other packages than ours."""
