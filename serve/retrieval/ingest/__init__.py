"""From a file to chunks in the store: conversion in worker processes, splitting, embedding. Readers are in `formats`."""
