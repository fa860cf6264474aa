"""Virtual time: a fleet of any size that learns with the very same fold, codecs and admission."""
