"""Tables, figures and the HTML page, made from result records. Imports no torch."""
