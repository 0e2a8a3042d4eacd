package sidecar

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/proxy/capture"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
	"github.com/hauberk-mesh/hauberk/proxy/socket"
)

// Static is the file of `hauberk-proxy --config`: a sidecar without a control
// plane. Its resources are those that a control plane would send, in their
// JSON form.
type Static struct {
	// PodUID names the own workload among the resources.
	PodUID   string `yaml:"podUID"`
	Identity struct {
		CertificateFile string `yaml:"certificateFile"`
		KeyFile         string `yaml:"keyFile"`
		BundleFile      string `yaml:"bundleFile"`
	} `yaml:"identity"`
	Listeners struct {
		// Outbound and Inbound listen on plain addresses; each connection goes to
		// the listener's destination.
		Outbound []StaticListener `yaml:"outbound"`
		Inbound  []StaticListener `yaml:"inbound"`
		// Capture listens on the sidecar's ports and asks the kernel for
		// destinations.
		Capture bool `yaml:"capture"`
	} `yaml:"listeners"`
	Resources    []map[string]any `yaml:"resources"`
	LogLevel     string           `yaml:"logLevel"`
	DrainSeconds int              `yaml:"drainSeconds"`
	// MaxConnections and MaxOpening bound each listener (connections.Limits);
	// zero for the defaults.
	MaxConnections int `yaml:"maxConnections"`
	MaxOpening     int `yaml:"maxOpening"`
	// Addresses of the faces; empty for none.
	Health  string `yaml:"health"`
	Metrics string `yaml:"metrics"`
	Admin   string `yaml:"admin"`

	resources []*hauberkv1.Resource
}

// StaticListener is one address with one destination.
type StaticListener struct {
	Address     string `yaml:"address"`
	Destination string `yaml:"destination"`
	destination netip.AddrPort
}

// ReadStatic reads and checks a file. Unknown keys are errors.
func ReadStatic(name string) (*Static, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	s := &Static{DrainSeconds: int(defaultDrain / time.Second)}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("read configuration %s: %w", name, err)
	}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", name, err)
	}
	return s, nil
}

func (s *Static) check() error {
	var errs []error
	if s.PodUID == "" {
		errs = append(errs, errors.New("podUID is empty"))
	}
	for _, list := range [][]StaticListener{s.Listeners.Outbound, s.Listeners.Inbound} {
		for i := range list {
			var err error
			if list[i].destination, err = netip.ParseAddrPort(list[i].Destination); err != nil {
				errs = append(errs, fmt.Errorf("listener %s: destination %q: %w", list[i].Address, list[i].Destination, err))
			}
		}
	}
	hasSelf := false
	for i, r := range s.Resources {
		b, err := json.Marshal(r)
		if err != nil {
			errs = append(errs, fmt.Errorf("resources[%d]: %w", i, err))
			continue
		}
		m := &hauberkv1.Resource{}
		if err := protojson.Unmarshal(b, m); err != nil {
			errs = append(errs, fmt.Errorf("resources[%d]: %w", i, err))
			continue
		}
		hasSelf = hasSelf || m.GetWorkload().GetUid() == s.PodUID
		s.resources = append(s.resources, m)
	}
	if !hasSelf {
		errs = append(errs, fmt.Errorf("no workload with uid %q is among the resources: it would never become ready", s.PodUID))
	}
	if s.DrainSeconds < 0 {
		errs = append(errs, fmt.Errorf("drainSeconds %d is negative", s.DrainSeconds))
	}
	if s.MaxConnections < 0 || s.MaxOpening < 0 {
		errs = append(errs, fmt.Errorf("maxConnections %d or maxOpening %d is negative", s.MaxConnections, s.MaxOpening))
	}
	return errors.Join(errs...)
}

func (s *Static) limits() connections.Limits {
	l := connections.DefaultLimits()
	if s.MaxConnections > 0 {
		l.Connections = s.MaxConnections
	}
	if s.MaxOpening > 0 {
		l.Opening = s.MaxOpening
	}
	return l
}

// RunStatic runs a file's sidecar until ctx ends and it has drained.
func RunStatic(ctx context.Context, s *Static, out io.Writer, level *slog.LevelVar) error {
	if s.LogLevel != "" {
		var l slog.Level
		if err := l.UnmarshalText([]byte(s.LogLevel)); err != nil {
			return fmt.Errorf("logLevel: %w", err)
		}
		level.Set(l)
	}
	log := slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}))
	source, err := identity.NewFileSource(s.Identity.CertificateFile, s.Identity.KeyFile, s.Identity.BundleFile)
	if err != nil {
		return err
	}
	target := func(c net.Conn) (netip.AddrPort, error) {
		if l, ok := c.(*staticConn); ok {
			return l.target, nil
		}
		return capture.OriginalDestination(c, own...)
	}
	core := NewCore(CoreOptions{PodUID: s.PodUID, Source: source, Log: log, AccessLog: out, Inbound: target, Outbound: target,
		Foreign: !s.Listeners.Capture, Limits: s.limits()})
	fixed := NewFixed(core.Directory, s.resources)
	core.Directory.Bind(fixed)
	log.Info("static sidecar starts", "version", version.String(), "resources", len(s.resources))
	return runWith(ctx, process{core: core, log: log, level: level, source: source, connected: func() bool { return true },
		drain:  time.Duration(s.DrainSeconds) * time.Second,
		listen: func(ctx context.Context) ([]bound, error) { return s.listen(ctx, core) },
		tasks:  []lifecycle.Task{{Name: "resources", Run: fixed.Run}},
		health: s.Health, metrics: s.Metrics, admin: s.Admin})
}

// staticConn is a connection whose destination is configured.
type staticConn struct {
	*net.TCPConn
	target netip.AddrPort
}

// NetConn is the connection underneath.
func (c *staticConn) NetConn() net.Conn { return c.TCPConn }

func (s *Static) listen(ctx context.Context, core *Core) (all []bound, err error) {
	defer func() {
		if err != nil {
			for _, b := range all {
				b.Close()
			}
			all = nil
		}
	}()
	if s.Listeners.Capture {
		if all, err = capturing(ctx, core); err != nil {
			return all, err
		}
	}
	add := func(list []StaticListener, handle func(context.Context, net.Conn)) error {
		for _, l := range list {
			listener, err := socket.ListenOn(ctx, "tcp", l.Address)
			if err != nil {
				return fmt.Errorf("listen on %s: %w", l.Address, err)
			}
			all = append(all, bound{listener, func(ctx context.Context, c net.Conn) {
				handle(ctx, &staticConn{c.(*net.TCPConn), l.destination})
			}})
		}
		return nil
	}
	if err = add(s.Listeners.Outbound, core.Outbound.Handle); err != nil {
		return all, err
	}
	err = add(s.Listeners.Inbound, core.Inbound.Handle)
	return all, err
}
