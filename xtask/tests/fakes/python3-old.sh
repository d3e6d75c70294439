#!/bin/sh
echo "pip 9.0.1 from /nowhere (python 3.5)"
