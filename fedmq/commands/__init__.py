"""One file a sub-command of `fedmq`. They read settings, start rooms and print."""
