"""The networks, the images and the training recipe of the command line."""
