"""Document ingestion: conversion in worker processes, splitting, embedding. Parsers of each format are in `formats`."""
