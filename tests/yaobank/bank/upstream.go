package bank

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// traceHeaders are the W3C headers that tie a request to the one it is made
// for. A service that copies them takes part in tracing without any library.
var traceHeaders = []string{"traceparent", "tracestate", "baggage"}

// traceID is the trace's part of a traceparent header, "" if there is none.
func traceID(traceparent string) string {
	parts := strings.Split(traceparent, "-")
	if len(parts) < 4 || len(parts[1]) != 32 {
		return ""
	}
	return parts[1]
}

// maxAnswer bounds what is read of another service's answer.
const maxAnswer = 1 << 20

// upstream is the next service of the chain.
type upstream struct {
	base   *url.URL
	client *http.Client
}

func newUpstream(base string) (*upstream, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("parse upstream URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("upstream URL %q wants the form http://name[:port]", base)
	}
	return &upstream{base: u, client: &http.Client{
		Timeout: upstreamTimeout,
		// No proxy from the environment: the mesh is the only middleman here.
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 8,
			IdleConnTimeout:     30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// statusError is an answer that is not 200, with what the other side said.
type statusError struct {
	url    string
	status int
	said   string
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("GET %s answered %d %s", e.url, e.status, http.StatusText(e.status))
	if e.said != "" {
		text += ": " + e.said
	}
	return text
}

// get reads a JSON document for an incoming request, whose trace headers go along.
func (u *upstream) get(ctx context.Context, incoming http.Header, into any, query url.Values, path ...string) error {
	target := u.base.JoinPath(path...)
	target.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	request.Header.Set("Accept", "application/json")
	for _, name := range traceHeaders {
		for _, value := range incoming.Values(name) {
			request.Header.Add(name, value)
		}
	}
	response, err := u.client.Do(request)
	if err != nil {
		return err // names the method and the URL already
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer of %s: %w", target, err)
	}
	if response.StatusCode != http.StatusOK {
		return &statusError{url: target.String(), status: response.StatusCode, said: brief(body)}
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode answer of %s: %w", target, err)
	}
	return nil
}

// brief is the start of an error's body, fit for one line.
func brief(body []byte) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body), "?")), " ")
	if runes := []rune(text); len(runes) > 300 {
		text = string(runes[:300]) + "…"
	}
	return text
}
