// Marks what the shared library lets others call; everything else stays hidden in it.
#pragma once

#ifdef _WIN32
#ifdef PYINV_BUILDING  // defined while one of pyinv's own libraries is compiled
#define PYINV_API __declspec(dllexport)
#else
#define PYINV_API __declspec(dllimport)
#endif
#else
#define PYINV_API __attribute__((visibility("default")))
#endif
