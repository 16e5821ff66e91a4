"""An S3 server in a process of its own, which keeps its objects while it is stopped and started again.

Prints its port, then obeys the lines ``stop`` and ``start`` and answers each; ends with its input.
"""

import sys

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
_, port = server.get_host_and_port()
print(port, flush=True)
for line in sys.stdin:
    if line.strip() == "stop":
        server.stop()
    else:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
    print(line.strip(), flush=True)
