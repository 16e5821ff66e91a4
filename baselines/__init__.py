"""The methods Barlow Twins is compared with, one file each, and the reference rows."""
