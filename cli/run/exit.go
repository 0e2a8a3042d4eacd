// Package run holds what every sub-command of `hauberk` needs: exit codes, the
// connection to a cluster, output and progress. It owns how the command speaks,
// not what it does.
package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Exit codes, as sysexits.h has them where it has one.
const (
	ExitOK          = 0
	ExitRuntime     = 1
	ExitUsage       = 64
	ExitBadInput    = 65
	ExitUnreachable = 69
	ExitFindings    = 79
	ExitDenied      = 80
	ExitTimeout     = 124
)

// Error is a failure with its exit code and what to do about it.
type Error struct {
	Code int
	Err  error
	// Mend says what to do next; empty when the error says it.
	Mend string
	// Silent says that everything was already told.
	Silent bool
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Fail is an Error of one line.
func Fail(code int, mend, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...), Mend: mend}
}

// Told ends the command with code when its output already said why.
func Told(code int) error {
	return &Error{Code: code, Err: fmt.Errorf("exit code %d", code), Silent: true}
}

// Code is the exit code of an error.
func Code(err error) int {
	var (
		e       *Error
		urlErr  *url.Error
		netErr  net.Error
		opError *net.OpError
	)
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.DeadlineExceeded):
		return ExitTimeout
	case errors.As(err, &opError), errors.As(err, &urlErr), errors.As(err, &netErr):
		return ExitUnreachable
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return ExitBadInput
	}
	return ExitRuntime
}

// Mend is what to do about an error; empty when nobody knows.
func Mend(err error) string {
	var e *Error
	if errors.As(err, &e) && e.Mend != "" {
		return e.Mend
	}
	switch {
	case Code(err) == ExitUnreachable:
		return "is the cluster up, and is this its kubeconfig? Choose another with --kubeconfig or --context"
	case apierrors.IsForbidden(err):
		return "your user lacks this right; `kubectl auth can-i --list` shows what it has"
	}
	return ""
}
