// Package demo is a prefork application to try the daemon on: a master that keeps worker
// processes running, and the worker, which plays a small shop's web application and
// writes source files as prometheus_client 0.18 and later does in multiprocess mode.
// Workers are recycled after some requests and now and then killed with SIGKILL, as in
// real life.
//
// A Go program cannot fork: a fork takes one thread along, and the runtime needs the
// others. So the master executes its own program again for each worker. What matters here
// is the same: separate processes with files of their own, which end in every possible way.
//
// Its invariant: no worker outlives its master, however the master ends.
package demo
