"""`penstock up`: the process that holds the public ports and keeps the controller and the routers running."""
