package web

import (
	"io"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"reassure/image/serve/api"
)

// Counter is a figure of another part of the server that only grows.
type Counter struct {
	Name  string // "reassure_tftp_bytes_total"
	Help  string
	Value func() float64
}

// states and results are all that there are, so that each has a figure from
// the start.
var (
	states  = [...]api.State{api.Running, api.Parked, api.Retrying, api.Held, api.Armed, api.Changed, api.New, api.Current}
	results = [...]api.Result{api.Done, api.UpToDate, api.Failed, api.Vanished, api.Restarted}
)

type metrics struct {
	handler  http.Handler
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	events   *prometheus.CounterVec
	attempts *prometheus.CounterVec
	reloads  *prometheus.CounterVec
	reloaded prometheus.Gauge
	at       prometheus.Gauge
}

func newMetrics(s *Server) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "reassure_" + name, Help: help}, labels)
	}
	m := &metrics{
		requests: counters("http_requests_total", "HTTP requests answered, by part of the server and status.", "part", "status"),
		refused:  counters("http_refused_total", "HTTP requests refused, by part of the server and status.", "part", "status"),
		bytes:    counters("http_sent_bytes_total", "Bytes of HTTP answers, by part of the server.", "part"),
		events:   counters("events_total", "Events that PCs reported, by kind.", "kind"),
		attempts: counters("attempts_total", "Attempts to reimage that ended, by result.", "result"),
		reloads:  counters("reloads_total", "Readings of the site's files, by result: ok or refused.", "result"),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{Name: "reassure_reload_ok", Help: "Whether the last reading of the site's files was good."}),
		at:       prometheus.NewGauge(prometheus.GaugeOpts{Name: "reassure_reload_timestamp_seconds", Help: "When the site's files were last read well."}),
	}
	for _, r := range results {
		m.attempts.WithLabelValues(string(r))
	}
	for _, r := range []string{"ok", "refused"} {
		m.reloads.WithLabelValues(r)
	}
	for _, k := range kinds {
		m.events.WithLabelValues(string(k))
	}
	m.reloaded.Set(1)
	m.at.Set(float64(s.o.Now().Unix()))

	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "reassure_build_info", Help: "Always 1; the label is our version.",
		ConstLabels: prometheus.Labels{"version": s.o.Version},
	})
	info.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests, m.refused, m.bytes, m.events, m.attempts, m.reloads, m.reloaded, m.at, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "reassure_viewers", Help: "Open streams."}, func() float64 { return float64(s.hub.viewers()) }),
		labCollector{s.lab})
	for _, c := range s.o.Counters {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: c.Name, Help: c.Help}, c.Value))
	}
	m.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return m
}

// AttemptEnded counts an attempt that ended.
func (s *Server) AttemptEnded(r api.Result) { s.metrics.attempts.WithLabelValues(string(r)).Inc() }

// Reloaded notes that the site's files were read again, whoever asked for it,
// and what came of it.
func (s *Server) Reloaded(err error) {
	if err != nil {
		s.metrics.reloads.WithLabelValues("refused").Inc()
		s.metrics.reloaded.Set(0)
		return
	}
	s.metrics.reloads.WithLabelValues("ok").Inc()
	s.metrics.reloaded.Set(1)
	s.metrics.at.Set(float64(s.o.Now().Unix()))
}

// labCollector counts the lab when it is asked.
type labCollector struct{ lab Lab }

var (
	hostsDesc    = prometheus.NewDesc("reassure_hosts", "Hosts, by state.", []string{"state"}, nil)
	rolloutsDesc = prometheus.NewDesc("reassure_rollouts", "Roll-outs, by state: active, stopped or finished.", []string{"state"}, nil)
	unknownDesc  = prometheus.NewDesc("reassure_unknown_cards", "Cards that asked and are no host's.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (labCollector) Describe(to chan<- *prometheus.Desc) {
	to <- hostsDesc
	to <- rolloutsDesc
	to <- unknownDesc
}

// Collect implements [prometheus.Collector].
func (l labCollector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	hosts := map[api.State]int{}
	for _, h := range l.lab.Hosts() {
		hosts[h.State]++
	}
	for _, state := range states {
		gauge(hostsDesc, hosts[state], string(state))
	}
	rollouts := map[string]int{}
	for _, r := range l.lab.Rollouts() {
		rollouts[rolloutState(&r)]++
	}
	for _, state := range []string{"active", "stopped", "finished"} {
		gauge(rolloutsDesc, rollouts[state], state)
	}
	gauge(unknownDesc, len(l.lab.Unknown()))
}

// rolloutState says in one word what a roll-out is about.
func rolloutState(r *api.Rollout) string {
	switch {
	case r.Finished():
		return "finished"
	case r.Stopped != nil:
		return "stopped"
	}
	return "active"
}

// writer counts what is sent, and gives up on clients that take nothing.
type writer struct {
	http.ResponseWriter
	control *http.ResponseController
	bytes   prometheus.Counter
	status  int
}

func (m *metrics) writer(part string, w http.ResponseWriter) *writer {
	return &writer{ResponseWriter: w, control: http.NewResponseController(w), bytes: m.bytes.WithLabelValues(part)}
}

// Unwrap lets [http.ResponseController] through.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// patience sets the time by which the next piece must have been taken. There
// is no limit to a whole answer: a wad may take hours on a slow line.
func (w *writer) patience() {
	// Only tests have writers without deadlines.
	_ = w.control.SetWriteDeadline(time.Now().Add(stallTime))
}

func (w *writer) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.patience()
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.patience()
	n, err := w.ResponseWriter.Write(p)
	w.bytes.Add(float64(n))
	return n, err
}

// piece is how much must be taken within stallTime: small enough for 200 PCs
// on a line of 10 Mbit/s.
const piece = 256 << 10

// ReadFrom sends a file in pieces. What net/http sees of each is an
// [io.LimitedReader] straight on the file, so that the kernel does the copying
// (sendfile).
func (w *writer) ReadFrom(src io.Reader) (int64, error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	limited, ok := src.(*io.LimitedReader)
	if !ok {
		limited = &io.LimitedReader{R: src, N: 1<<63 - 1}
	}
	var total int64
	for limited.N > 0 {
		part := &io.LimitedReader{R: limited.R, N: min(limited.N, piece)}
		want := part.N
		w.patience()
		n, err := to.ReadFrom(part)
		total += n
		limited.N -= n
		w.bytes.Add(float64(n))
		if err != nil || n < want {
			return total, err
		}
	}
	return total, nil
}
