"""Barlow Twins, the method contract and the engine that pretrains encoders."""
