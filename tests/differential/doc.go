// Package differential sends requests that try to be two things at once through a
// pair of real sidecars to real back ends (nginx, Node.js, gunicorn, Python's
// http.server, Go's net/http), and holds what the sidecar says it admitted against
// what the back end says it saw: the same requests, in the same order, with the
// same method, path, host and body, and nothing besides.
//
// It owns the corpus of such requests and the back ends' programs. It does not
// own syntax (proxy/http1) or policy.
package differential
