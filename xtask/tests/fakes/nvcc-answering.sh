#!/bin/sh
# An nvcc that answers every question with NVCC_ANSWER.
printf '%s\n' "$NVCC_ANSWER"
