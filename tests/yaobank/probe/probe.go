// Package probe is the toolbox inside the yaobank image: clients that try a
// connection and say in one exit code how it went, and servers to try it on.
// The image has no shell, so the demo and the tests run these by kubectl exec.
//
// It owns the words and codes below and nothing of the bank.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// Exit codes of the clients; the same numbers as curl's where it has one.
const (
	OK          = 0
	NoName      = 6  // the name does not resolve
	NoConnect   = 7  // refused, unreachable, or not permitted
	BadStatus   = 22 // an HTTP answer of 400 or more
	Timeout     = 28 // nothing within the time allowed, as when packets are dropped
	NoAnswer    = 52 // connected, then closed or reset without an answer
	Usage       = 64
	OtherFailed = 1
)

// Failure is an attempt that did not succeed.
type Failure struct {
	Code int
	Err  error
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// word is the failure in one word, the first of the line that users see.
func word(code int) string {
	switch code {
	case OK:
		return "ok"
	case NoName:
		return "unresolved"
	case NoConnect:
		return "refused"
	case BadStatus:
		return "denied-or-failed"
	case Timeout:
		return "timeout"
	case NoAnswer:
		return "closed"
	default:
		return "failed"
	}
}

// classify finds the exit code of a network error. connected tells whether the
// connection had been made when it happened.
func classify(err error, connected bool) *Failure {
	var dns *net.DNSError
	var network net.Error
	code := OtherFailed
	switch {
	case errors.As(err, &dns) && !dns.IsTimeout:
		code = NoName
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		code = Timeout
	case errors.As(err, &network) && network.Timeout():
		code = Timeout
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		code = NoConnect
	case errors.Is(err, syscall.ECONNRESET) && !connected:
		code = NoConnect
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		// net/http's word for a close that it saw before its request; it has no value.
		strings.Contains(err.Error(), "server closed idle connection"):
		code = NoAnswer
	}
	return &Failure{Code: code, Err: fmt.Errorf("%s: %w", word(code), err)}
}

// maxShown bounds what the clients print of an answer.
const maxShown = 4 << 20
