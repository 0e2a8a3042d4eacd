// Package admin is the sidecar's face for operators, on loopback only: what it
// is, what it knows, what it carries, its log level and profiles. It shows keys
// and tokens nowhere.
//
// It owns the pages, not what they show.
package admin

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/internal/wire"
	"github.com/hauberk-mesh/hauberk/proxy/connections"
	"github.com/hauberk-mesh/hauberk/proxy/directory"
	"github.com/hauberk-mesh/hauberk/proxy/upstream"
)

// Options are what the pages show.
type Options struct {
	Directory   *directory.Directory
	Upstreams   *upstream.Set
	Connections *connections.Registry
	Source      *identity.Source
	Connected   func() bool
	NotReady    func() []string
	Level       *slog.LevelVar
	Flows       *flow.Ring
	Started     time.Time
	// Drain starts draining and returns at once.
	Drain func()
}

// Status is the page "/": the shape is kept between versions.
type Status struct {
	Version       string    `json:"version"`
	Started       time.Time `json:"started"`
	Identity      string    `json:"identity,omitempty"`
	Expiry        time.Time `json:"certificateExpiry,omitzero"`
	Pod           string    `json:"pod,omitempty"`
	PodUID        string    `json:"podUID,omitempty"`
	Workload      string    `json:"workload,omitempty"`
	Connected     bool      `json:"connected"`
	Updated       time.Time `json:"lastUpdate,omitzero"`
	NotReady      []string  `json:"notReady,omitempty"`
	Versions      Versions  `json:"versions"`
	Connections   int       `json:"connections"`
	Draining      bool      `json:"draining"`
	LogLevel      string    `json:"logLevel"`
	OTLPEndpoint  string    `json:"otlpEndpoint,omitempty"`
	SamplingRatio float64   `json:"samplingRatio"`
	MTLSMode      string    `json:"mtlsMode,omitempty"`
	PolicySet     string    `json:"policySet,omitempty"`
}

// Versions are of the configuration in force.
type Versions struct {
	Mesh      string `json:"mesh,omitempty"`
	Workload  string `json:"workload,omitempty"`
	PolicySet string `json:"policySet,omitempty"`
}

// DrainPath is where draining is asked for, by POST.
const DrainPath = "/drain"

// Handler serves the pages.
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	lifecycle.HandlePprof(mux)
	page := func(path string, f func() any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { write(w, f()) })
	}
	page("/{$}", func() any { return o.status() })
	page("/status", func() any { return o.status() })
	page("/connections", func() any { return o.connections() })
	page("/pools", func() any { return o.Upstreams.States() })
	page("/destinations", func() any { return o.destinations() })
	mux.HandleFunc("GET /policy", o.policy)
	mux.Handle("GET /flows", flow.Handler(o.Flows, nil))
	mux.HandleFunc("GET /identity", o.identity)
	mux.HandleFunc("GET /log-level", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, level(o.Level)) })
	mux.HandleFunc("PUT /log-level", o.setLevel)
	mux.HandleFunc("POST "+DrainPath, func(w http.ResponseWriter, _ *http.Request) {
		o.Drain()
		fmt.Fprintln(w, "draining")
	})
	return sameOrigin(mux)
}

// sameOrigin refuses what a web page in somebody's browser, through a port
// forward, could send: loopback is no identity.
func sameOrigin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			http.Error(w, "requests of web pages are refused", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func level(v *slog.LevelVar) string { return strings.ToLower(v.Level().String()) }

func write(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	// The reader went away; there is nobody to tell.
	_ = e.Encode(v)
}

func (o *Options) status() Status {
	mesh := o.Directory.Mesh()
	s := Status{Version: version.String(), Started: o.Started, Expiry: o.Source.Expiry(), Connected: o.Connected(),
		Updated: o.Directory.Updated(), NotReady: o.NotReady(), Connections: o.Connections.Len(), Draining: o.Connections.Draining(),
		LogLevel: level(o.Level), OTLPEndpoint: mesh.Proto.GetTelemetry().GetOtlpEndpoint(),
		SamplingRatio: mesh.Proto.GetTelemetry().GetSamplingRatio(), Versions: Versions{Mesh: mesh.Version}}
	if svid, ok := o.Source.Current(); ok {
		s.Identity = svid.ID.String()
	}
	if self := o.Directory.Self(); self != nil {
		s.Pod, s.PodUID, s.Workload = self.Workload.Namespace+"/"+self.Workload.Name, self.Workload.UID, self.Workload.Display()
		s.Versions.Workload, s.Versions.PolicySet = self.Workload.Version, self.SetVersion
		s.MTLSMode, s.PolicySet = self.Workload.Proto.GetMtlsMode().String(), self.Set.ID
	}
	return s
}

type connectionPage struct {
	Direction string    `json:"direction"`
	Peer      string    `json:"peer"`
	Target    string    `json:"target"`
	Protocol  string    `json:"protocol,omitempty"`
	Since     time.Time `json:"since"`
}

func (o *Options) connections() []connectionPage {
	list := []connectionPage{}
	for _, l := range o.Connections.All() {
		list = append(list, connectionPage{l.Direction, l.Peer, l.Target, l.Protocol(), l.Since})
	}
	slices.SortFunc(list, func(a, b connectionPage) int { return a.Since.Compare(b.Since) })
	return list
}

type destinationsPage struct {
	Destinations map[string]*directory.Destination `json:"destinations"`
	Workloads    map[string]string                 `json:"workloads"`
}

// destinations shows what is cached; null is known not to be of the mesh, or
// not answered yet.
func (o *Options) destinations() destinationsPage {
	p := destinationsPage{map[string]*directory.Destination{}, map[string]string{}}
	o.Directory.Each(
		func(name string, d *directory.Destination) { p.Destinations[name] = d },
		func(name string, w *directory.Workload) {
			p.Workloads[name] = ""
			if w != nil {
				p.Workloads[name] = w.Namespace + "/" + w.Name
			}
		})
	return p
}

func (o *Options) policy(w http.ResponseWriter, _ *http.Request) {
	self := o.Directory.Self()
	if self == nil {
		http.Error(w, "policy is not known yet", http.StatusServiceUnavailable)
		return
	}
	b, err := protojson.MarshalOptions{Multiline: true}.Marshal(wire.PolicySetToProto(self.Set))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}

// identity is the certificate in use and its chain, PEM; never the key.
func (o *Options) identity(w http.ResponseWriter, _ *http.Request) {
	svid, ok := o.Source.Current()
	if !ok {
		http.Error(w, "there is no certificate yet", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	for _, c := range svid.Certificates {
		if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return // the reader went away
		}
	}
}

func (o *Options) setLevel(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, 64))
	if err == nil {
		var l slog.Level
		if err = l.UnmarshalText([]byte(strings.TrimSpace(string(b)))); err == nil {
			o.Level.Set(l)
			fmt.Fprintln(w, level(o.Level))
			return
		}
	}
	http.Error(w, "want debug, info, warn or error as the body: "+err.Error(), http.StatusBadRequest)
}
