"""The demo: real digits on a fleet of devices that each know only some of them."""
