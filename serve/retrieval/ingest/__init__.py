"""From a file to chunks in the store: conversion in worker processes, splitting, embedding. Parsers of each format are in `formats`."""
