package run

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// podTimeout is how long one request to a pod may take, the way there included.
const podTimeout = 10 * time.Second

// maxPodAnswer is the most that is read of an answer.
const maxPodAnswer = 64 << 20

// DialPod connects to a port on the loopback of a pod.
type DialPod func(ctx context.Context, namespace, pod string, port int) (net.Conn, error)

// PodHTTP is an HTTP client whose every connection leads to a port on the
// loopback of a pod, by the API server's port-forward. Nothing listens on this
// machine. Close its idle connections when it is done with.
func (c *Clients) PodHTTP(namespace, pod string, port int) *http.Client {
	dial := c.DialPod
	if dial == nil {
		dial = c.forward
	}
	return &http.Client{
		Timeout: podTimeout,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, namespace, pod, port)
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// PodDo sends one request to a port of a pod and returns the body of an answer
// of 2xx; any other answer is an error.
func (c *Clients) PodDo(ctx context.Context, method, namespace, pod string, port int, path string, body []byte) ([]byte, error) {
	client := c.PodHTTP(namespace, pod, port)
	defer client.CloseIdleConnections()
	where := fmt.Sprintf("pod %s/%s, %s %s", namespace, pod, method, path)
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost:"+strconv.Itoa(port)+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	res, err := client.Do(req)
	if err != nil {
		var known *Error
		if errors.As(err, &known) {
			return nil, known
		}
		return nil, &Error{Code: ExitRuntime, Err: fmt.Errorf("%s: %w", where, unwrapURL(err)),
			Mend: fmt.Sprintf("does it run? See `kubectl -n %s get pod %s` and its log; this needs the right to create pods/portforward there", namespace, pod)}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxPodAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if res.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s: %s: %s", where, res.Status, strings.TrimSpace(string(data)))
	}
	return data, nil
}

// unwrapURL takes off the made-up address that net/http puts before an error.
func unwrapURL(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil || !strings.HasPrefix(err.Error(), "Get ") && !strings.HasPrefix(err.Error(), "Put ") && !strings.HasPrefix(err.Error(), "Post ") {
			return err
		}
		err = inner
	}
}

// PodJSON reads a JSON answer of a pod into v.
func (c *Clients) PodJSON(ctx context.Context, namespace, pod string, port int, path string, v any) error {
	data, err := c.PodDo(ctx, http.MethodGet, namespace, pod, port, path, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("pod %s/%s, %s: the answer is of another version of the mesh: %w", namespace, pod, path, err)
	}
	return nil
}

// forward dials by the API server: WebSockets, or SPDY where an older server or
// a proxy between does not pass them.
func (c *Clients) forward(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	target := c.Kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("portforward").URL()
	overWebSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, c.Config)
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	overHTTP := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, target)
	dialer := portforward.NewFallbackDialerForStreaming(overWebSocket, overHTTP, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})

	// The dialer knows no context: when ctx ends first, its connection is closed
	// as soon as it is there.
	type dialed struct {
		conn httpstream.Connection
		err  error
	}
	result := make(chan dialed, 1)
	go func() {
		conn, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
		if err == nil && protocol != portforward.PortForwardProtocolV1Name {
			conn.Close()
			conn, err = nil, fmt.Errorf("the API server speaks %q instead of %q", protocol, portforward.PortForwardProtocolV1Name)
		}
		result <- dialed{conn, err}
	}()
	var d dialed
	select {
	case d = <-result:
	case <-ctx.Done():
		go func() {
			if late := <-result; late.conn != nil {
				late.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if d.err != nil {
		return nil, fmt.Errorf("port-forward: %w", d.err)
	}
	p, err := newPodConn(d.conn, namespace+"/"+pod, port)
	if err != nil {
		d.conn.Close()
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	return p, nil
}

// podConn is the stream of one forwarded connection as a net.Conn.
type podConn struct {
	httpstream.Stream
	conn httpstream.Connection
	name podAddr

	// told is closed when the far end's word on failures is known.
	told   chan struct{}
	failed string // set before told is closed
	once   sync.Once
}

// newPodConn opens the two streams of one forwarded connection: the kubelet
// writes into the first what went wrong.
func newPodConn(conn httpstream.Connection, pod string, port int) (*podConn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	errs, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the stream for errors: %w", err)
	}
	errs.Close() // nothing is sent on it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open the stream for data: %w", err)
	}
	p := &podConn{Stream: data, conn: conn, name: podAddr(fmt.Sprintf("%s:%d", pod, port)), told: make(chan struct{})}
	go func() {
		message, err := io.ReadAll(io.LimitReader(errs, 4096))
		if err == nil {
			p.failed = strings.TrimSpace(string(message))
		}
		close(p.told)
	}()
	return p, nil
}

// Read says why when the kubelet could not connect.
func (p *podConn) Read(b []byte) (int, error) {
	n, err := p.Stream.Read(b)
	if err == nil || n > 0 {
		return n, err
	}
	select {
	case <-p.told:
		if p.failed != "" {
			return 0, errors.New(p.failed)
		}
	case <-time.After(time.Second):
	}
	return 0, err
}

func (p *podConn) Close() error {
	var err error
	p.once.Do(func() { err = p.conn.Close() })
	return err
}

type podAddr string

func (podAddr) Network() string  { return "pod" }
func (a podAddr) String() string { return string(a) }

func (p *podConn) LocalAddr() net.Addr  { return podAddr("localhost") }
func (p *podConn) RemoteAddr() net.Addr { return p.name }

// The streams know no deadlines; requests end with their context, which closes
// the connection.
func (p *podConn) SetDeadline(time.Time) error      { return nil }
func (p *podConn) SetReadDeadline(time.Time) error  { return nil }
func (p *podConn) SetWriteDeadline(time.Time) error { return nil }
