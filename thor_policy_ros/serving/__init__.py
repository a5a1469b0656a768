"""openpi's policy protocol, both ends: a server of our policies, a client of other servers."""
