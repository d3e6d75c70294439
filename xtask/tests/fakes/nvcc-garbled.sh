#!/bin/sh
echo "Welcome to the compile farm"
