"""The program beside each server, run as `python -I -S shim.py`; shim_server.py is what it does, compiled already."""

import os
import sys

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    __import__("shim_server").main()
