"""Text that breaks out of whatever does not escape it: HTML, scripts, JSON, Markdown and LaTeX."""

NASTY = "</script><img src=x onerror=alert(1)><script>alert(2)</script> & \\textbf{$x_1$} ^~#|--b [c]* 5 % ' \" <!--"
